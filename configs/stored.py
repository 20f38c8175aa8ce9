"""The config stored in a checkpoint. Use it to evaluate imported weights, or a run whose recipe you do not have.

python eval.py --config=configs/stored.py:CHECKPOINT --config.data.root=CITYSCAPES --checkpoint=CHECKPOINT
"""

from deeplab_jax.config import Config


def get_config(checkpoint: str = "") -> Config:
    from deeplab_jax.checkpoints.store import stored_config
    from deeplab_jax.errors import ConfigError

    if not checkpoint:
        raise ConfigError(
            "`--config` (='configs/stored.py') does not name a checkpoint. Use --config=configs/stored.py:CHECKPOINT."
        )
    return stored_config(checkpoint)
