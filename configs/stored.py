"""The config that a checkpoint was saved with: evaluates imported weights, and runs whose recipe is not at hand.

python eval.py --config=configs/stored.py:CHECKPOINT --config.data.root=CITYSCAPES --checkpoint=CHECKPOINT
"""

from deeplab_jax.config import Config


def get_config(checkpoint: str = "") -> Config:
    from deeplab_jax.checkpoints.store import stored_config
    from deeplab_jax.errors import ConfigError

    if not checkpoint:
        raise ConfigError("`--config` (='configs/stored.py') names no checkpoint: give --config=configs/stored.py:CHECKPOINT")
    return stored_config(checkpoint)
