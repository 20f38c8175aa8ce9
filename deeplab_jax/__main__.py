"""Let `python -m deeplab_jax` stand for `deeplab-jax`, which may not be on the PATH."""

from deeplab_jax.commands.main import main

if __name__ == "__main__":
    main()
