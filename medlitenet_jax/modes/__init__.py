"""What the command line can be asked to do: one file a mode, with a function `main(call)`."""

MODES = {
  "prepare": "fetch a public data set, or read it from config.data.raw, and reduce it once; "
  "or write the generated one as files",
  "train": "train, or go on where an earlier call stopped",
  "repeat": "train and score the recipe with several --seeds, for every fold of config.data.folds, "
  "or both, and say how far the scores spread",
  "evaluate": "score the best checkpoint of --workdir, or an ensemble, on config.eval.split",
  "export": "write the network of --workdir as weights files, into --output",
  "predict": "outline the lesions in the photographs of --input, into --output",
  "compare": "set the evaluations in the folders of --input side by side",
  "benchmark": "time the network and its training step against the plain form",
  "knockout": "silence each part of a trained network in turn, and say what its scores lose",
  "describe": "table and picture of the network's parts",
  "check": "read the data set and list what is wrong with it, changing nothing",
  "preview": "sheet of the augmentations beside their originals",
}
