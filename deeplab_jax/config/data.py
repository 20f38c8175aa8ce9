"""The part of the config that describes the data set and the training augmentation."""

import dataclasses

from deeplab_jax.config.fields import (
    Check,
    are_numbers,
    are_one_or_more_numbers,
    are_strings,
    at_least,
    below_one,
    field,
    integer_pair,
    is_pattern,
    one_of,
)
from deeplab_jax.config.model import MAX_CHANNELS

_PROBABILITY = Check(lambda probability: 0 <= probability <= 1, "Use a probability from 0 to 1.")


@dataclasses.dataclass(slots=True)
class DataConfig:
    """The data set and the training augmentation."""

    root: str = field(
        "",
        "Data set folder, either in one of the layouts in docs/reference/data-formats.md or written by "
        "`deeplab-jax data prepare`.",
    )
    source: str = field(
        "",
        "`tfds:NAME` reads a TensorFlow Datasets (TFDS) data set, with `data.root` as the data_dir. If `data.root` is "
        "empty, TFDS uses its default data_dir. Leave `data.source` empty to read the files in `data.root`.",
        Check(
            lambda source: not source or (source.startswith("tfds:") and source != "tfds:"),
            "Use tfds:NAME, or leave it empty to read the files in data.root.",
        ),
    )
    train_split: str = field("train", "Name of the training split. `train+val` joins two splits.")
    mix: tuple[float, ...] = field(
        (),
        "Ratio in which each batch draws from the splits in `data.train_split`, such as (1, 3) for a quarter from the first "
        "split, whatever the sizes of the splits. Each split is then shuffled by itself, and an epoch is a pass over the first "
        "split. () mixes the splits by their sizes.",
        Check(
            lambda mix: mix == () or (are_one_or_more_numbers(mix) and min(mix) > 0),
            "Give a number above 0 for each split, such as --config.data.mix='(1,1)', or ().",
        ),
    )
    channels: int = field(
        3,
        "Number of channels (bands) in the images, from 1 to 8: 1 for grey or thermal images, 3 for RGB, 4 for RGB and "
        "infrared. See docs/how-to/bands.md.",
        Check(lambda channels: 1 <= channels <= MAX_CHANNELS, f"Use an integer from 1 to {MAX_CHANNELS}."),
        changes="shapes",
    )
    value_range: tuple[float, ...] = field(
        (),
        "Values in the image files that become 0 and 255, such as (0, 4095) for 12 bits. Values in between are scaled linearly "
        "and rounded, and values outside are clipped. () uses the full range of the file's integer type, so 8-bit values are "
        "unchanged and 16-bit values are reduced to their upper 8 bits. Files with other types need a range.",
        Check(
            lambda pair: pair == () or (are_numbers(pair, 2) and pair[0] < pair[1]),
            "Give the lowest and the highest value, such as --config.data.value_range='(0,4095)', or ().",
        ),
    )
    val_share: float = field(
        0.0,
        "Fraction of the training images to hold out for validation, if the data set has no `val` split. The choice depends "
        "only on the image names. `data.train_split` then holds the other images. With `data.mix`, only images of the first "
        "split are held out.",
        Check(lambda share: 0 <= share < 1, "Use a fraction from 0 to below 1."),
    )
    val_group: str = field(
        "",
        "Regular expression for the part of an image name that images must share to stay together, such as the name of a "
        "video: `'(.*)_\\d+'`. Only used with `data.val_share`.",
        Check(is_pattern, "Use a regular expression, such as '(.*)_[0-9]+', or leave it empty."),
    )
    label_kind: str = field(
        "auto",
        "How label files encode classes: `labelIds` for the label set's ids, `labelTrainIds` for train ids, or `color` for "
        "RGB colours. `auto` detects this from the file names and the first label file.",
        one_of("auto", "labelIds", "labelTrainIds", "color"),
    )
    batch_size: int = field(
        16, "Number of training samples per step, across all devices and hosts.", at_least(1, "Use a number of at least 1.")
    )
    crop_size: tuple[int, int] = field(
        (512, 1024),
        "Height and width of each training sample, in pixels.",
        integer_pair(1, "Give two integers above 0, such as --config.data.crop_size='(512,1024)'."),
    )
    scale: tuple[float, float] = field(
        (0.5, 2.0),
        "Smallest and largest random resize factors for training images.",
        Check(
            lambda scale: are_numbers(scale, 2) and 0 < scale[0] <= scale[1],
            "Give the smallest and the largest factor, such as --config.data.scale='(0.5,2.0)'.",
        ),
    )
    flip: bool = field(True, "Whether to flip each training sample horizontally with a probability of 0.5.")
    cat_max_ratio: float = field(
        1.0,
        "Upper limit for the fraction of a crop's labelled pixels that belong to a single class. A crop that reaches the limit "
        "is redrawn, up to ten times, as in mmsegmentation's RandomCrop. 1 accepts every crop. The limit does not apply to the "
        "crops of data.class_balanced.",
        Check(lambda fraction: 0 < fraction <= 1, "Use a fraction above 0, or 1 to accept every crop."),
    )
    class_balanced: float = field(
        0.0,
        "Fraction of training samples whose crop is centred on a pixel from a randomly chosen class. Every class in "
        "the image is equally likely.",
        Check(lambda fraction: 0 <= fraction <= 1, "Use a fraction from 0 to 1."),
    )
    photometric: bool = field(
        False,
        "Whether to distort the brightness, contrast, saturation and hue of training images, as mmsegmentation does. The "
        "distortion runs on the device. Saturation and hue change only in the first three channels, and not at all in images "
        "with fewer.",
    )
    rotation: float = field(
        0.0,
        "Maximum angle, in degrees, of the random rotation applied to training samples in either direction.",
        Check(lambda degrees: 0 <= degrees <= 180, "Use an angle from 0 to 180 degrees."),
    )
    cutout: float = field(
        0.0,
        "Height and width of a rectangle blanked at a random position in each training sample, as a fraction of the crop's "
        "height and width. Labels inside the rectangle are ignored.",
        below_one("fraction of the crop size"),
    )
    class_mix: float = field(
        0.0,
        "Probability that a training sample receives the pixels of half of the classes in the previous sample of its batch "
        "(ClassMix). The mixing runs on the device.",
        _PROBABILITY,
    )
    copy_paste: float = field(
        0.0,
        "Probability that a training sample receives the pixels of the classes in `data.copy_paste_classes` from the previous "
        "sample of its batch. The mixing runs on the device.",
        _PROBABILITY,
    )
    copy_paste_classes: tuple[str, ...] = field(
        (),
        "Names of the classes for `data.copy_paste`. `deeplab-jax data check` prints the rare ones.",
        Check(are_strings, "Give class names: --config.data.copy_paste_classes=\"('pole','rider')\"."),
    )
    threads: int = field(
        0,
        "Number of host threads per process for decoding and augmenting samples. 0 uses one thread for each CPU core available "
        "to the process.",
        at_least(0, "Use a number of at least 1, or 0 for one thread per core."),
    )
    max_unreadable: int = field(
        0,
        "Number of unreadable training samples that each process tolerates. These samples are reported by name and do not "
        "contribute to the loss or the gradient. One more unreadable sample stops the run. Evaluation never skips samples.",
        at_least(0, "Use a number of at least 0."),
    )
