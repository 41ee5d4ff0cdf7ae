"""Unlabelled image files, decoded batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from reptrt.engines.outputs.detection import FloatArray
from reptrt.models.spec import Preprocess
from reptrt.pipeline.data.batches import ImageSet, LazyBatches, prepared_batches
from reptrt.pipeline.data.image_folder import ImageFile, fingerprint_files
from reptrt.pipeline.data.preprocess import Prepared, prepare, read_image


class FolderImages(ImageSet):
    """Unlabelled image files.

    Args:
        files: Readable images, in the order of the batches.
        preprocess: What the network expects.
    """

    def __init__(self, files: Sequence[ImageFile], preprocess: Preprocess) -> None:
        self.files = tuple(files)
        self._preprocess = preprocess

    def __len__(self) -> int:
        return len(self.files)

    def name_of(self, index: int) -> str:
        """Where an image is."""
        return str(self.files[index])

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the images' names, bytes and order."""
        return fingerprint_files(self.files)

    def at(self, index: int) -> FloatArray:
        """One image `[3, h, w]` float32."""
        return self._load(index).tensor

    def batches(self, batch_size: int) -> LazyBatches[FloatArray]:
        """Return batches `[n, 3, h, w]` float32, decoded while iterating."""
        prepared = prepared_batches(self._load, len(self), batch_size)
        return LazyBatches(len(prepared), lambda: (batch.images for batch in prepared))

    def _load(self, index: int) -> Prepared:
        return prepare(read_image(self.files[index]), self._preprocess)
