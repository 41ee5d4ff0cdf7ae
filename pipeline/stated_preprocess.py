"""What a recipe says about images, for whoever loads its network."""

from __future__ import annotations

from reptrt.models.spec import PreprocessOverrides
from reptrt.pipeline.recipe import Recipe


def stated_preprocess(recipe: Recipe) -> PreprocessOverrides:
    """The preprocessing that `recipe` states; of an open size, its usual one is the size of images.

    Raises:
        PreprocessError: a value is out of its range.
    """
    smallest, usual, largest = recipe.dynamic_size or (None, recipe.image_size, None)
    return PreprocessOverrides(
        usual, recipe.mean, recipe.std, recipe.layout, recipe.channels, smallest, largest
    )
