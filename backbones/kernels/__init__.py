"""Fast forms of convolution, product, mean and norm."""
