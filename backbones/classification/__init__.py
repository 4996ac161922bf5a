"""Classification of pictures: config, data and network."""
