"""Classification of pictures: config, data and network."""

import os

# albumentations asks the network for newer releases at import, unless told not to before it.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
