"""The paper's recipe on ISIC 2018 Task 1 (arXiv 2509.03041).

    python launch.py --config=configs/base.py

Every field is here with its unit and its valid values; the other files in this folder import this
one and change a few lines. `docs/paper.md` says where the paper is silent or contradicts itself,
and what was chosen.
"""

import functools

from ml_collections import ConfigDict, config_dict


def _add_networks_of_other_papers(model: ConfigDict) -> None:
  """Adds the sections of those networks to `config.model`; None is the variant's value."""
  flag, whole, number, several = (
    functools.partial(config_dict.placeholder, kind) for kind in (bool, int, float, tuple)
  )
  model.unet = unet = ConfigDict()
  unet.width = whole()  # channels of the finest level
  unet.bilinear = flag()  # the decoder enlarges by interpolation

  model.unet_plus_plus = unet_plus_plus = ConfigDict()
  unet_plus_plus.width = whole()  # channels of the finest level
  unet_plus_plus.batch_norm = flag()
  unet_plus_plus.dropout = number()  # in every node
  unet_plus_plus.deep_supervision = flag()

  model.attention_unet = attention_unet = ConfigDict()
  attention_unet.width = whole()  # channels of the finest level
  attention_unet.grid = flag()  # gates on a coarser grid, as their authors have them

  model.deeplab_v3_plus = deeplab = ConfigDict()
  deeplab.encoder_dims = several()  # channels of the stem, of seven stages and of the encoder's end
  deeplab.encoder_blocks = several()  # of the seven stages
  deeplab.dim = whole()  # channels of the pyramid and the decoder
  deeplab.skip_dim = whole()  # channels that the decoder sees of the encoder's second stage
  deeplab.dilations = several()  # of the pyramid
  deeplab.dropout = number()  # at the pyramid's end

  model.swin_unet = swin_unet = ConfigDict()
  swin_unet.window = whole()  # tokens a side; inputs are multiples of 32 times as many pixels
  swin_unet.dim = whole()  # channels of the first stage
  swin_unet.depths = several()  # blocks of each stage
  swin_unet.heads = several()  # of attention, of each stage
  swin_unet.mlp_ratio = whole()
  swin_unet.drop_path = number()  # how often the deepest block leaves out a residual branch

  model.transunet = transunet = ConfigDict()
  transunet.image_size = whole()  # pixels a side, the only size that it takes
  transunet.width = whole()  # channels of the stem
  transunet.units = several()  # residual units of each stage
  transunet.dim = whole()  # channels of a token
  transunet.layers = whole()
  transunet.heads = whole()
  transunet.mlp_dim = whole()
  transunet.decoder_dims = several()  # channels, deepest stage first
  transunet.dropout = number()  # in the transformer


def _add_networks_with_attention(model: ConfigDict) -> None:
  """Adds the fields of further networks of other papers, the same way."""
  whole, number, several = (
    functools.partial(config_dict.placeholder, kind) for kind in (int, float, tuple)
  )
  model.fat_net = fat_net = ConfigDict()
  fat_net.width = whole()  # channels of the residual network's first stage
  fat_net.units = several()  # residual units of each stage
  fat_net.dim = whole()  # channels of a token
  fat_net.layers = whole()  # of the transformer
  fat_net.heads = whole()
  fat_net.mlp_ratio = whole()
  fat_net.adaptations = several()  # how often the skips at strides 2, 4 and 8 are adapted

  model.bacanet = bacanet = ConfigDict()  # a reconstruction after the abstract
  bacanet.dims = several()  # channels of the encoder's stages
  bacanet.depths = several()  # blocks of each stage
  bacanet.mlp_ratios = several()  # of each stage
  bacanet.decoder_dims = several()  # channels, coarsest stage first
  bacanet.drop_path = number()  # how often the deepest block leaves out a residual branch

  model.segformer = segformer = ConfigDict()
  segformer.dims = several()  # channels of the encoder's stages
  segformer.depths = several()  # blocks of each stage
  segformer.heads = several()  # of attention, of each stage
  segformer.mlp_ratio = whole()
  segformer.decoder_dim = whole()
  segformer.drop_path = number()  # how often the deepest block leaves out a residual branch
  segformer.dropout = number()  # of the decoder's channels


def get_config() -> ConfigDict:
  """Returns the recipe, locked; fields that are None get their value from `model.variant`."""
  config = ConfigDict()
  config.seed = 0  # one seed for initialisation, shuffling, augmentation and dropout
  # auto, float32, bfloat16, float16; auto: float32 on CPU, else bfloat16. Trained networks, members
  # of ensembles too, are evaluated in the precision of their training unless this is set.
  config.precision = "auto"

  config.data = ConfigDict()
  # A public set: isic2018, isic2017, isic2016, ph2, ham10000; or folder, or synthetic.
  config.data.source = "isic2018"
  # Public set: where it is prepared; folder: contains images/, masks/ and, optionally, splits.csv.
  config.data.root = "data/isic2018"
  # Public set: folder of its archives, zipped or not; empty: download them if possible.
  config.data.raw = ""
  config.data.working_size = 768  # pixels of the shorter side that a public set is reduced to
  config.data.mask_suffix = "_segmentation"  # after the photograph's name; "": the same name
  # Column of splits.csv, such as patient or lesion, whose groups stay in one split; "": none.
  config.data.group_column = ""
  # Column of splits.csv with the class of each photograph, such as diagnosis, for a network that
  # tells classes apart; "": none.
  config.data.class_column = ""
  # Without splits.csv, or a column split in it, cases are split by a hash of the group or name.
  config.data.split_seed = 0
  config.data.val_fraction = 0.1  # of the groups
  config.data.test_fraction = 0.1
  # Number of parts that train and val together are divided into anew, by group; 0: none.
  config.data.folds = 0
  config.data.fold = 0  # the part that is val, from 0; the others are train
  config.data.max_train_images = 0  # of train, drawn at random by the seed; 0: all
  config.data.max_eval_images = 0  # of the split that is scored, for every seed the same; 0: all
  config.data.num_threads = 0  # reader threads; 0: one per core. Does not change the order of cases
  config.data.prefetch_batches = 0  # batches read ahead; 0: one per thread, from 4 up to 16
  # Memory for keeping decoded photographs and masks of train; 0: decode them at every use.
  config.data.cache_gib = 2.0
  # Where photographs are augmented: host, device, or platform: device on a GPU, host on a CPU.
  config.data.augment_on = "platform"
  config.data.synthetic = ConfigDict()  # drawn from (seed, index) alone
  config.data.synthetic.num_train = 512  # images
  config.data.synthetic.num_val = 64
  config.data.synthetic.num_test = 64
  config.data.synthetic.image_size = 192  # pixels, both sides

  # Applied to every photograph after reading, in training, evaluation and prediction alike.
  config.preprocess = ConfigDict()
  config.preprocess.hair_removal = False
  config.preprocess.shadow_removal = False
  config.preprocess.color_constancy = "none"  # none, shades_of_grey

  # Each augmentation has the probability of being applied to an image and the range from which its
  # strength is drawn uniformly. Lengths are fractions of the side of the image.
  config.augment = ConfigDict()
  config.augment.enabled = True
  config.augment.crop_probability = 0.5
  config.augment.crop_scale = (0.7, 1.0)  # side of the crop
  config.augment.crop_ratio = (0.85, 1.18)  # width over height of the crop, relative to the image
  config.augment.flip_horizontal_probability = 0.5
  config.augment.flip_vertical_probability = 0.5
  config.augment.rotate_probability = 0.5
  config.augment.rotate_degrees = (-180.0, 180.0)
  config.augment.scale_probability = 0.5
  config.augment.scale_range = (0.85, 1.15)
  config.augment.translate_probability = 0.5
  config.augment.translate_range = (-0.1, 0.1)
  config.augment.elastic_probability = 0.3
  config.augment.elastic_amplitude = (0.005, 0.02)  # standard deviation of the displacement
  config.augment.elastic_grid = 5  # control points per side; fewer bend more smoothly
  config.augment.brightness_contrast_probability = 0.5
  config.augment.brightness_range = (-0.15, 0.15)  # added, as a fraction of full scale
  config.augment.contrast_range = (0.8, 1.2)  # factor around the mean
  config.augment.gamma_probability = 0.3
  config.augment.gamma_range = (0.7, 1.4)  # exponent
  config.augment.clahe_probability = 0.2
  config.augment.clahe_clip_limit = (1.0, 2.0)
  config.augment.clahe_tiles = 8  # tiles per side, of at least 32 pixels
  config.augment.noise_probability = 0.2
  config.augment.noise_std = (0.0, 0.04)  # of full scale
  config.augment.blur_probability = 0.2
  config.augment.blur_sigma = (0.0, 0.006)
  # Left to future work by the paper; configs/hard_cases.py turns these on.
  config.augment.hairs_probability = 0.0
  config.augment.hairs_count = (2, 40)
  config.augment.hairs_width = (0.003, 0.008)  # at the root
  config.augment.ruler_probability = 0.0
  config.augment.ruler_inset = (0.03, 0.15)  # from a side
  config.augment.shadow_probability = 0.0
  config.augment.shadow_depth = (0.15, 0.5)  # fraction of the light that it takes
  config.augment.shadow_softness = (0.03, 0.2)  # half the width of its edge
  config.augment.uneven_light_probability = 0.0
  config.augment.uneven_light_fall = (0.15, 0.5)  # fraction lost from brightest to darkest place
  config.augment.skin_tone_probability = 0.0
  config.augment.skin_tone_density = (-0.3, 0.7)  # of melanin in green; above 0 darkens
  config.augment.faint_border_probability = 0.0
  config.augment.faint_border_width = (0.03, 0.07)  # distance from the border to half strength
  config.augment.faint_border_strength = (0.5, 1.0)  # weight of a blend of both sides

  config.model = ConfigDict()
  config.model.name = "medlitenet"
  config.model.variant = "base"  # base, wide_context, fine_boundary
  # Form of the operations: platform, the one for where it runs; cpu, gpu; library: the plain one.
  config.model.form = "platform"
  config.model.remat = False  # recompute blocks in the backward pass, to save memory
  # Each network has its own section. None: the variant's value. False removes a part.
  config.model.medlitenet = ConfigDict()
  medlitenet = config.model.medlitenet
  medlitenet.encoder_blocks = config_dict.placeholder(tuple)  # MBConv blocks of each stage
  medlitenet.mixer_dim = config_dict.placeholder(int)  # channels of a token
  medlitenet.mixer_layers = config_dict.placeholder(int)
  medlitenet.mixer_heads = config_dict.placeholder(int)
  medlitenet.mixer_mlp_ratio = config_dict.placeholder(int)
  medlitenet.aspp_branch_dim = config_dict.placeholder(int)  # channels of each branch
  medlitenet.aspp_dilations = config_dict.placeholder(tuple)
  medlitenet.decoder_dims = config_dict.placeholder(tuple)  # channels, deepest stage first
  # Stages with a boundary-aware gate: 0 is the encoder's end, 1 to 4 the decoder's stages.
  medlitenet.gate_stages = config_dict.placeholder(tuple)
  medlitenet.mixer = True
  medlitenet.attention = True  # of the mixer's layers
  medlitenet.cross_scale = True  # stage-3 tokens join those of stage 4
  medlitenet.boundary_bias = True  # boundary map biases the attention
  medlitenet.boundary_bias_stage = 1  # encoder stage of that boundary map, 1 to 4
  medlitenet.fusion = True  # eq. 5; False: plain sum
  medlitenet.aspp = True  # False: one 1x1 convolution
  medlitenet.gate_context = True  # eq. 7
  medlitenet.scse = True
  medlitenet.token_norm = config_dict.placeholder(bool)  # of tokens, queries and keys
  medlitenet.contrast_attention = False  # queries and keys from standardised tokens
  medlitenet.pool_fine_tokens = config_dict.placeholder(bool)  # to the grid of stage 4
  medlitenet.position_cycles = config_dict.placeholder(float)  # highest frequency, a frame
  medlitenet.classical_edges = False  # of the photograph, in the gates
  medlitenet.boundary_magnitude = config_dict.placeholder(bool)  # maps are standardised magnitudes
  medlitenet.aspp_grid = config_dict.placeholder(int)  # that the dilations are meant for; 0: any
  medlitenet.classes = 0  # number of classes in data.class_column; 0: none
  medlitenet.dropout = 0.1  # in the mixer
  _add_networks_of_other_papers(config.model)
  _add_networks_with_attention(config.model)

  config.loss = ConfigDict()
  # One section per term; a weight of 0 turns it off.
  config.loss.bce = ConfigDict()  # cross-entropy
  config.loss.bce.weight = 0.5
  config.loss.bce.boundary_weight = 0.0  # extra weight of pixels near the border
  config.loss.bce.boundary_width = 0.012  # on either side of the border, of the image's side
  config.loss.dice = ConfigDict()
  config.loss.dice.weight = 0.5
  config.loss.dice.epsilon = 1.0  # pixels
  config.loss.boundaries = ConfigDict()  # of the network's boundary maps against the mask's border
  # None: 0.2 for a network that has such maps, otherwise 0.
  config.loss.boundaries.weight = config_dict.placeholder(float)
  config.loss.boundaries.width = 0.005  # on either side of the border, of the image's side
  config.loss.deep = ConfigDict()  # of the masks that a network's inner layers give
  # None: for a network that has such masks their number, so that each counts as the mask does with
  # the weights above; otherwise 0.
  config.loss.deep.weight = config_dict.placeholder(float)
  config.loss.classes = ConfigDict()  # cross-entropy of the classes, where they are known
  config.loss.classes.weight = 0.0

  config.optim = ConfigDict()
  config.optim.name = "adamw"  # adamw, sgd
  config.optim.learning_rate = 1e-3
  config.optim.final_learning_rate = 1e-6
  config.optim.warmup_updates = 100  # linear
  config.optim.weight_decay = 1e-2  # on kernels only
  config.optim.momentum = 0.9  # of sgd
  config.optim.clip_norm = 0.5  # of the global gradient
  config.optim.accumulation = 2  # batches per update
  config.optim.ema_decay = 0.999
  # Early in training, average over about the last tenth of n updates: min(decay, (1+n)/(10+n)).
  config.optim.ema_warmup = True

  config.train = ConfigDict()
  config.train.epochs = 300  # as the paper's Table II; its text says 165
  # Weights file or released name to start from, or files of pretrained encoders with commas between
  # them; "": random weights.
  config.train.start_from = ""
  # Whether those may be of another network, of which a run takes the arrays that fit.
  config.train.start_partly = False
  # Whether BatchNorm uses the running statistics of those weights, and leaves them as they are.
  config.train.keep_statistics = False
  config.train.max_steps = 0  # batches (micro-steps); 0: by epochs
  config.train.batch_size = 16
  config.train.image_sizes = (256, 384, 512)  # pixels; each for an equal part of the run, in order
  config.train.mixed_sizes = False  # the sizes take turns, batch by batch
  # How often each of the faintest third of train comes in an epoch.
  config.train.low_contrast_repeats = 1
  config.train.validate_every_epochs = 1
  # Where so many epochs have fewer batches than this, more epochs pass between two validations.
  config.train.validate_min_steps = 20
  # Validations in a row without a better Dice after which a run ends; 0: it never ends early.
  config.train.patience = 0
  config.train.log_every_steps = 20
  # Stop after this many batches in a row without a finite loss and gradient; 0: never stop. float16
  # may need up to 16 to find its loss scale.
  config.train.max_skipped_in_a_row = 20

  config.eval = ConfigDict()
  config.eval.split = "test"  # train, val, test, or all of them: all
  # Side of the network's input in pixels; 0: the last of train.image_sizes, for each member.
  config.eval.image_size = 0
  config.eval.batch_size = 16
  config.eval.threshold = 0.5  # 0: the one with the highest mean Dice on val
  # Pixels down to this probability join a connected region that reaches the threshold; 0: off.
  config.eval.hysteresis_low = 0.0
  # Test-time augmentation: none, six (identity, two flips, three quarter turns). Not used for the
  # validation during training.
  config.eval.tta = "none"
  # Clean-up of the mask, in the given order: any of fill_holes, keep_largest, drop_specks.
  config.eval.postprocess = ()
  config.eval.review_below = 0.85  # cases with a lower expected Dice are listed for review
  config.eval.checkpoint = "best"  # best (by validation Dice), latest

  # Networks to average, weighted by validation Dice (configs/ensemble.py): folders of runs, weights
  # files or released names; (): only the run in --workdir.
  config.ensemble = ConfigDict()
  config.ensemble.members = ()

  config.profile = ConfigDict()
  config.profile.start_step = 0
  config.profile.num_steps = 0  # batches in the trace; 0: none

  config.benchmark = ConfigDict()
  # Pixels, of the forward pass; training uses the first. (): 256 and 512 if the network takes them.
  config.benchmark.image_sizes = ()
  config.benchmark.rounds = 5  # turns of each function that is compared
  config.benchmark.compare_plain = True  # also time the plain form, which takes most of the time

  config.lock()
  return config
