"""The region mutual information loss (Zhao et al. 2019, arXiv:1910.12037)."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped, UInt8

from deeplab_jax.config import LossConfig
from deeplab_jax.labels import IGNORE
from deeplab_jax.losses.loss import Mean, one_hot

_POOL = 3  # the maps are downsampled by this factor
_REGION = 3  # the height and width of a region in the downsampled maps
_ALPHA = 5e-4  # added to the eigenvalues of the covariances


def rmi(logits: Float[Array, "n h w k"], labels: UInt8[Array, "n h w"], mask: Bool[Array, "n h w"], config: LossConfig) -> Mean:
    """Return the region mutual information loss, averaged over the images with labelled pixels.

    For each class, the labels y (0 or 1) and the probabilities p (a sigmoid) are max-pooled by 3, and the 9 values of every
    3 x 3 region are taken as a vector. Let S be the covariances of these vectors over one image, summed rather than averaged.
    The loss is 1/18 log det(S_yy - S_yp (S_pp + aI)^-1 S_py + aI), summed over classes, where a = 5e-4. It measures how much
    of the labels the predictions leave open, and can be negative. A class that is not in the image's labels adds the constant
    1/2 log a.

    The result equals that of PaddleSeg's RMILoss, except that images without labelled pixels are skipped rather than counted
    with the constants. (The authors' own loss also contains the binary cross-entropy.) As there, ignored pixels have label 0
    and probability 0 for every class. An image with less than 7 x 7 pixels has no region, so each class adds the constant.
    """
    valid = (mask & (labels != IGNORE))[..., None]
    # The sigmoid is monotonic, so it can be applied after pooling, to a ninth of the pixels.
    probability = jax.nn.sigmoid(_max_pool(jnp.where(valid, logits, -jnp.inf), -jnp.inf))
    target = _max_pool(one_hot(labels, logits.shape[-1]) & valid, False).astype(logits.dtype)
    # Padding lies below and to the right of an image, so a region is in the image if the centre of its last window is.
    is_region = mask[:, ::_POOL, ::_POOL][:, _REGION - 1 :, _REGION - 1 :]
    y, p = (_centre(_decompose_regions(x), is_region) for x in (target, probability))
    image_loss = jnp.sum(_log_det(_conditional_covariance(y, p)), axis=-1) / (2 * _REGION**2)
    is_counted = jnp.any(valid, axis=(1, 2, 3))
    return Mean(jnp.sum(jnp.where(is_counted, image_loss, 0.0)), jnp.maximum(jnp.sum(is_counted), 1))


def _max_pool(x: Shaped[Array, "n h w k"], lowest: float) -> Shaped[Array, "n k i j"]:
    """Return the maximum of each 3 x 3 window, with stride 3 and the first window centred on the first pixel.

    The windows do not overlap, so a reshape is enough. On CPUs, its gradient is faster than that of `lax.reduce_window`.
    """
    n, h, w, k = x.shape
    rows, columns = (math.ceil(size / _POOL) for size in (h, w))
    # The last window is centred on a pixel. One more row or column may be missing or left over.
    edges = [(0, 0, 0), *((1, _POOL * count - size - 1, 0) for count, size in ((rows, h), (columns, w))), (0, 0, 0)]
    padded = lax.pad(x, jnp.asarray(lowest, x.dtype), edges)
    return jnp.moveaxis(jnp.max(padded.reshape(n, rows, _POOL, columns, _POOL, k), axis=(2, 4)), -1, 1)


def _decompose_regions(x: Float[Array, "n k i j"]) -> Float[Array, "n k u 9 v"]:
    """Return the 3 x 3 discrete cosine transform of each region.

    The transform is orthogonal, so it leaves the determinants as they are. The plain values of a region are nearly equal,
    which makes their covariance nearly singular, and float32 would lose what distinguishes them. Their mean, slopes and
    curvatures are nearly independent.
    """
    terms = [z for rows in _cosine_transform(x, axis=2) for z in _cosine_transform(rows, axis=3)]
    return jnp.stack(terms, axis=3)


def _cosine_transform(x: Float[Array, "n k i j"], axis: int) -> list[Float[Array, "n k u v"]]:
    """Return the scaled mean, slope and curvature of every three consecutive values along an axis."""
    count = max(x.shape[axis] - _REGION + 1, 0)
    starts = (min(i, x.shape[axis] - count) for i in range(_REGION))
    a, b, c = (lax.slice_in_dim(x, start, start + count, axis=axis) for start in starts)
    return [(a + b + c) / math.sqrt(3), (c - a) / math.sqrt(2), ((a - b) + (c - b)) / math.sqrt(6)]


def _centre(x: Float[Array, "n k u 9 v"], is_region: Bool[Array, "n u v"]) -> Float[Array, "n k u 9 v"]:
    """Subtract the mean over the regions of each image, and set what is not a region to 0."""
    inside = is_region[:, None, :, None]
    count = jnp.maximum(jnp.sum(inside, axis=(2, 4), keepdims=True), 1)
    mean = jnp.sum(jnp.where(inside, x, 0.0), axis=(2, 4), keepdims=True) / count
    return jnp.where(inside, x - mean, 0.0)


def _conditional_covariance(y: Float[Array, "n k u 9 v"], p: Float[Array, "n k u 9 v"]) -> Float[Array, "n k 9 9"]:
    """Return S_yy - S_yp (S_pp + aI)^-1 S_py + aI.

    With B = (S_pp + aI)^-1 S_py and the residuals r = y - B^T p, this equals S_rr + a (B^T B + I). That is a sum of squares,
    and therefore positive definite in float32 as well. B minimises it, so the gradient through B is 0.
    """
    ridge = _ALPHA * jnp.eye(_REGION**2, dtype=y.dtype)[None, None]
    factor = _cholesky(_covariance(p, p) + ridge)
    b = lax.stop_gradient(jax.scipy.linalg.cho_solve((factor, True), _covariance(p, y)))
    residual = y - _multiply(_transpose(b)[:, :, None], p)
    return _covariance(residual, residual) + _ALPHA * _multiply(_transpose(b), b) + ridge


def _covariance(x: Float[Array, "n k u 9 v"], y: Float[Array, "n k u 9 v"]) -> Float[Array, "n k 9 9"]:
    """Return the sums of products over the regions. Adding up each row first keeps the rounding small in large images."""
    return jnp.sum(_multiply(x, _transpose(y)), axis=2)


def _multiply(x: Float[Array, "*n i j"], y: Float[Array, "*m j l"]) -> Float[Array, "*k i l"]:
    return jnp.matmul(x, y, precision="highest")  # GPUs and TPUs would round the factors to fewer bits


def _transpose(x: Float[Array, "*n i j"]) -> Float[Array, "*n j i"]:
    return jnp.swapaxes(x, -1, -2)


def _log_det(matrix: Float[Array, "n k 9 9"]) -> Float[Array, "n k"]:
    return 2 * jnp.sum(jnp.log(jnp.diagonal(_cholesky(matrix), axis1=-2, axis2=-1)), axis=-1)


def _cholesky(matrix: Float[Array, "n k 9 9"]) -> Float[Array, "n k 9 9"]:
    """Return the Cholesky factor, with a diagonal enlarged by more than the rounding error of a covariance."""
    identity = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)[None, None]
    return jnp.linalg.cholesky(matrix * (1 + 100 * jnp.finfo(matrix.dtype).eps * identity))
