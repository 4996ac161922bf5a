"""Bad images of a data set: stop the run, or skip them and count them, as `data.on_bad_image` says.

The data sets of all tasks raise what `bad_image_error` returns; the loader replaces or drops the
image, and its caller counts it.
"""

from engine.errors import SkippedSampleError, UserError
from engine.schema import BadInputPolicy


def bad_image_error(error: UserError, policy: BadInputPolicy) -> Exception:
    """Return what `load` raises for an image that cannot be used.

    Args:
        error: says what is wrong with it.
        policy: whether the run stops.
    """
    if policy == "skip":
        return SkippedSampleError(str(error))
    return type(error)(f"{error}; data.on_bad_image=skip skips it")
