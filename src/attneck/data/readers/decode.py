"""Image files as pixels."""

from PIL import Image


def decode(path: str, name: str) -> Image.Image:
    """The image in RGB, by Pillow, as it lies in the file: an EXIF rotation is not followed.

    Raises ValueError with the data set's `name` for a file that is missing, damaged or no image.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise many kinds on broken files.
        reason = " ".join(str(error).split())
        raise ValueError(f"{name}: cannot read {path} ({reason}): replace it or remove it") from error
