"""Classification of images: config, data and network."""
