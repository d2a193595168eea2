"""The paper's recipe on ISIC 2018 Task 1 (arXiv 2509.03041).

    python launch.py --config=configs/base.py

Every field stands here with its unit and the values it takes; the other files in this folder
import this one and edit a few lines. `docs/paper.md` says where the paper is silent or contradicts
itself and what was chosen.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
  """Returns the resolved recipe; fields that are None follow `model.variant`."""
  config = ConfigDict()
  config.seed = 0  # one seed for initialisation, shuffling, augmentation and dropout
  # auto, float32, bfloat16, float16; auto: float32 on CPU, else bfloat16; a trained network is
  # evaluated in that of its training, each member of an ensemble too, unless one is named.
  config.precision = "auto"

  config.data = ConfigDict()
  # A public set: isic2018, isic2017, isic2016, ph2, ham10000; or folder, or synthetic.
  config.data.source = "isic2018"
  # Public set: where it is prepared; folder: holds images/, masks/ and, optionally, splits.csv.
  config.data.root = "data/isic2018"
  # Public set: folder of its archives, zipped or not; empty: downloaded where that is possible.
  config.data.raw = ""
  config.data.working_size = 768  # pixels of the shorter side that a public set is reduced to
  config.data.mask_suffix = "_segmentation"  # behind the photograph's name; "": the same name
  config.data.group_column = ""  # of splits.csv, as patient or lesion: kept in one split; "": none
  # Where splits.csv has no column split, or is missing: by a hash of group or name.
  config.data.split_seed = 0
  config.data.val_fraction = 0.1  # of the groups
  config.data.test_fraction = 0.1
  config.data.max_train_images = 0  # 0: all
  config.data.max_eval_images = 0  # 0: all
  config.data.num_threads = 0  # that read; 0: one a core. The order of cases is the same for any
  config.data.prefetch_batches = 0  # read ahead, one by a thread; 0: one a thread, from 4 up to 16
  # Memory for decoded photographs and masks of train, each then decoded once; 0: at every use.
  config.data.cache_gib = 2.0
  # Where photographs are augmented: host, device; platform: device on a GPU, host on a CPU.
  config.data.augment_on = "platform"
  config.data.synthetic = ConfigDict()  # drawn from (seed, index) alone
  config.data.synthetic.num_train = 512  # images
  config.data.synthetic.num_val = 64
  config.data.synthetic.num_test = 64
  config.data.synthetic.image_size = 192  # pixels, both sides

  # Done to every photograph as it is read, in training, evaluation and prediction alike.
  config.preprocess = ConfigDict()
  config.preprocess.hair_removal = False
  config.preprocess.color_constancy = "none"  # none, shades_of_grey

  # Each augmentation has the probability that it is applied to an image and the range that its
  # strength is drawn from, uniformly. Lengths are fractions of the side of the image.
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
  config.augment.elastic_grid = 5  # control points a side: fewer bend more smoothly
  config.augment.brightness_contrast_probability = 0.5
  config.augment.brightness_range = (-0.15, 0.15)  # added, as a fraction of full scale
  config.augment.contrast_range = (0.8, 1.2)  # factor around the mean
  config.augment.gamma_probability = 0.3
  config.augment.gamma_range = (0.7, 1.4)  # exponent
  config.augment.clahe_probability = 0.2
  config.augment.clahe_clip_limit = (1.0, 2.0)
  config.augment.clahe_tiles = 8  # tiles a side
  config.augment.noise_probability = 0.2
  config.augment.noise_std = (0.0, 0.04)  # of full scale
  config.augment.blur_probability = 0.2
  config.augment.blur_sigma = (0.0, 0.006)
  # What the paper leaves to future work; configs/hard_cases.py switches it on.
  config.augment.hairs_probability = 0.0
  config.augment.hairs_count = (2, 40)
  config.augment.hairs_width = (0.003, 0.008)  # at the root
  config.augment.ruler_probability = 0.0
  config.augment.ruler_inset = (0.03, 0.15)  # from a side
  config.augment.shadow_probability = 0.0
  config.augment.shadow_depth = (0.15, 0.5)  # share of the light that it takes
  config.augment.shadow_softness = (0.03, 0.2)  # half the width of its edge
  config.augment.uneven_light_probability = 0.0
  config.augment.uneven_light_fall = (0.15, 0.5)  # share lost between brightest and darkest place
  config.augment.skin_tone_probability = 0.0
  config.augment.skin_tone_density = (-0.3, 0.7)  # of melanin in green; above 0 darkens
  config.augment.faint_border_probability = 0.0
  config.augment.faint_border_width = (0.03, 0.07)  # on either side, to half the strength
  config.augment.faint_border_strength = (0.5, 1.0)  # share of a blend of both sides

  config.model = ConfigDict()
  config.model.name = "medlitenet"
  config.model.variant = "base"  # base, wide_context, fine_boundary
  config.model.form = "platform"  # of operations; platform: fastest on each; library: plain
  config.model.remat = False  # blocks are computed again for the gradient, not kept: saves memory
  # Each network has a section of its own. None: as the variant says. Set one to change that part
  # alone; False removes it.
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
  # Where the boundary-aware gate stands: 0 is the encoder's end, 1 to 4 the decoder's stages.
  medlitenet.gate_stages = config_dict.placeholder(tuple)
  medlitenet.mixer = True
  medlitenet.cross_scale = True  # stage-3 tokens join those of stage 4
  medlitenet.boundary_bias = True  # boundary map biases the attention
  medlitenet.boundary_bias_stage = 1  # encoder stage whose boundary map that is, 1 to 4
  medlitenet.fusion = True  # eq. 5; False: plain sum
  medlitenet.aspp = True  # False: one 1x1 convolution
  medlitenet.gate_context = True  # eq. 7
  medlitenet.scse = True
  medlitenet.dropout = 0.1  # in the mixer

  config.loss = ConfigDict()
  # A section each term; a weight of 0 leaves it out.
  config.loss.bce = ConfigDict()  # cross-entropy
  config.loss.bce.weight = 0.5
  config.loss.bce.boundary_weight = 0.0  # extra weight of pixels near the border
  config.loss.bce.boundary_width = 3  # pixels on either side of the border
  config.loss.dice = ConfigDict()
  config.loss.dice.weight = 0.5
  config.loss.dice.epsilon = 1.0  # pixels

  config.optim = ConfigDict()
  config.optim.name = "adamw"  # adamw, sgd
  config.optim.learning_rate = 1e-3
  config.optim.final_learning_rate = 1e-6
  config.optim.warmup_updates = 100  # linear
  config.optim.weight_decay = 1e-2  # on kernels only
  config.optim.momentum = 0.9  # of sgd
  config.optim.clip_norm = 0.5  # of the global gradient
  config.optim.accumulation = 2  # batches an update
  config.optim.ema_decay = 0.999
  # Averages over the last tenth or so of the updates while there are few: min(decay, (1+n)/(10+n)).
  config.optim.ema_warmup = True

  config.train = ConfigDict()
  config.train.epochs = 300  # as the paper's Table II; its text says 165
  config.train.start_from = ""  # weights file or released name to go on from; "": at random
  config.train.max_steps = 0  # batches (micro-steps); 0: by epochs
  config.train.batch_size = 16
  config.train.image_sizes = (256, 384, 512)  # pixels; an equal share of the run each, in order
  config.train.validate_every_epochs = 1
  config.train.log_every_steps = 20
  # Batches whose loss or gradient is not finite after which a run stops; 0: none. float16 may need
  # up to 16 in search of its loss scale.
  config.train.max_skipped_in_a_row = 20

  config.eval = ConfigDict()
  config.eval.split = "test"  # train, val, test
  # Pixels the network sees; 0: the last of train.image_sizes, of each member in an ensemble.
  config.eval.image_size = 0
  config.eval.batch_size = 16
  config.eval.threshold = 0.5  # 0: the one with the highest mean Dice on val
  # Pixels down to this probability join a region that reaches the threshold; 0: none do.
  config.eval.hysteresis_low = 0.0
  # Test-time augmentation: none, six (identity, two flips, three quarter turns). Validation in
  # training goes without.
  config.eval.tta = "none"
  # Clean-up of the mask, in this order: any of fill_holes, keep_largest, drop_specks.
  config.eval.postprocess = ()
  config.eval.review_below = 0.85  # cases whose expected Dice is lower are listed for a person
  config.eval.checkpoint = "best"  # best (by validation Dice), latest

  # Folders of the runs that are averaged, weighted by validation Dice (configs/ensemble.py); none:
  # the run in --workdir alone.
  config.ensemble = ConfigDict()
  config.ensemble.members = ()

  config.profile = ConfigDict()
  config.profile.start_step = 0
  config.profile.num_steps = 0  # batches in the trace; 0: none

  config.benchmark = ConfigDict()
  # Pixels, of the forward pass; training at the first. (): 256 and 512, or what the network takes.
  config.benchmark.image_sizes = ()
  config.benchmark.rounds = 5  # turns of each of the things compared
  config.benchmark.compare_plain = True  # with the plain form, which takes most of the time

  config.lock()
  return config
