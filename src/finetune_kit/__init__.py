"""Fine-tune the trailing blocks of any Keras backbone, and know what trained.

The path, in the order of the names below:

    folder -> read_image_folder -> ImageSet -> split -> train, validation, test
    backbone -> conv_blocks -> FineTuneSpec.plan -> FreezePlan
    classification_head, preprocessing -> fine_tune, sweep -> FineTuned -> evaluate -> Report
    FineTuned.save, push_to_hub -> predict -> Predictions

Models are plain Keras models, before and after. What is saved loads with Keras alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune_kit._data.duplicates import Duplicates, find_duplicates
    from finetune_kit._data.folds import StratifiedFolds, stratified_folds
    from finetune_kit._data.images import ImageSet
    from finetune_kit._data.manifest import read_manifest, write_manifest
    from finetune_kit._data.reading import read_image_folder, read_image_table
    from finetune_kit._data.split import Split, stratified_split
    from finetune_kit._features.augmentation import Augmentation
    from finetune_kit._features.cache import FeatureCache
    from finetune_kit._model.blocks import Block, conv_blocks
    from finetune_kit._model.head import classification_head
    from finetune_kit._model.plan import FreezePlan
    from finetune_kit._model.preprocessing import preprocessing
    from finetune_kit._model.schedules import gradual_unfreezing, linear_probe_then_fine_tune
    from finetune_kit._model.spec import FineTuneSpec
    from finetune_kit._model.surgery import cut, stitch
    from finetune_kit._report.attribution import grad_cam, occlusion
    from finetune_kit._report.compare import compare
    from finetune_kit._report.cross_validation import cross_validate
    from finetune_kit._report.estimate import Estimate
    from finetune_kit._report.evaluate import evaluate
    from finetune_kit._report.hub import push_to_hub
    from finetune_kit._report.overlay import overlay
    from finetune_kit._report.predict import predict
    from finetune_kit._report.predictions import Predictions
    from finetune_kit._report.report import Report
    from finetune_kit._train.features import compute_features, extract_features
    from finetune_kit._train.fine_tune import fine_tune
    from finetune_kit._train.rate_range import learning_rate_range
    from finetune_kit._train.recommend import recommend
    from finetune_kit._train.recommendation import Recommendation
    from finetune_kit._train.sweep import sweep
    from finetune_kit._train.tuned import FineTuned

__version__ = "0.1.0"

__all__ = [  # in the order of the path
    "ImageSet",
    "read_image_folder",
    "read_image_table",
    "write_manifest",
    "read_manifest",
    "Split",
    "stratified_split",
    "stratified_folds",
    "StratifiedFolds",
    "Duplicates",
    "find_duplicates",
    "Block",
    "conv_blocks",
    "FineTuneSpec",
    "FreezePlan",
    "linear_probe_then_fine_tune",
    "gradual_unfreezing",
    "classification_head",
    "preprocessing",
    "cut",
    "stitch",
    "Augmentation",
    "FeatureCache",
    "FineTuned",
    "extract_features",
    "compute_features",
    "recommend",
    "Recommendation",
    "learning_rate_range",
    "fine_tune",
    "sweep",
    "evaluate",
    "cross_validate",
    "Report",
    "Estimate",
    "compare",
    "predict",
    "Predictions",
    "push_to_hub",
    "grad_cam",
    "occlusion",
    "overlay",
]

# The module of each name. It is imported when the name is first used, so that the command line
# answers `--help` and completes words without waiting for Keras.
_HOMES = {
    "ImageSet": "_data.images",
    "read_image_folder": "_data.reading",
    "read_image_table": "_data.reading",
    "write_manifest": "_data.manifest",
    "read_manifest": "_data.manifest",
    "Split": "_data.split",
    "stratified_split": "_data.split",
    "stratified_folds": "_data.folds",
    "StratifiedFolds": "_data.folds",
    "Duplicates": "_data.duplicates",
    "find_duplicates": "_data.duplicates",
    "Block": "_model.blocks",
    "conv_blocks": "_model.blocks",
    "FineTuneSpec": "_model.spec",
    "FreezePlan": "_model.plan",
    "linear_probe_then_fine_tune": "_model.schedules",
    "gradual_unfreezing": "_model.schedules",
    "classification_head": "_model.head",
    "preprocessing": "_model.preprocessing",
    "cut": "_model.surgery",
    "stitch": "_model.surgery",
    "Augmentation": "_features.augmentation",
    "FeatureCache": "_features.cache",
    "FineTuned": "_train.tuned",
    "extract_features": "_train.features",
    "compute_features": "_train.features",
    "recommend": "_train.recommend",
    "Recommendation": "_train.recommendation",
    "learning_rate_range": "_train.rate_range",
    "fine_tune": "_train.fine_tune",
    "sweep": "_train.sweep",
    "cross_validate": "_report.cross_validation",
    "evaluate": "_report.evaluate",
    "Report": "_report.report",
    "Estimate": "_report.estimate",
    "compare": "_report.compare",
    "predict": "_report.predict",
    "Predictions": "_report.predictions",
    "push_to_hub": "_report.hub",
    "grad_cam": "_report.attribution",
    "occlusion": "_report.attribution",
    "overlay": "_report.overlay",
}


def __getattr__(name: str) -> Any:
    """Import a public name."""
    if name not in _HOMES:
        raise AttributeError(f"module 'finetune_kit' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"finetune_kit.{_HOMES[name]}"), name)
    globals()[name] = found  # the next use does not come here
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
