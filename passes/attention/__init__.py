"""What passes know of attention: sites, paths, biases, and what is measured of them."""
