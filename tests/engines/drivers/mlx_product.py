"""Driver: one product of activations and an int4 matrix in MLX's layout, in bfloat16.

    python mlx_product.py MATRIX PRODUCT

MATRIX is an .npz of `x`, `weight`, `scales` and `biases`, floats as float32; PRODUCT becomes a float32 .npy.
"""

import sys

import mlx.core as mx
import numpy as np


def main() -> None:
    file, result = sys.argv[1:]
    arrays = np.load(file)
    x, scales, biases = (mx.array(arrays[name]).astype(mx.bfloat16) for name in ("x", "scales", "biases"))
    weight = mx.array(arrays["weight"])
    product = mx.quantized_matmul(x, weight, scales, biases, transpose=True, group_size=32, bits=4)
    np.save(result, np.array(product.astype(mx.float32)))


if __name__ == "__main__":
    main()
