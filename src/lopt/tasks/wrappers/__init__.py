"""Tasks around tasks: other coordinates, gradients, precision, sums, scales."""
