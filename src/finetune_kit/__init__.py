"""Fine-tune the trailing blocks of any Keras backbone, and know what trained.

The path, in the order of the names below:

    folder -> read_image_folder -> ImageSet -> stratified_split -> Split
    backbone -> conv_blocks -> FineTuneSpec.plan -> FreezePlan
    classification_head, preprocessing -> fine_tune, sweep -> FineTuned -> evaluate -> Report

What comes in and what goes out are plain Keras models; what is saved loads with Keras alone.
"""

from finetune_kit._data.duplicates import Duplicates, find_duplicates
from finetune_kit._data.images import ImageSet
from finetune_kit._data.manifest import read_manifest, write_manifest
from finetune_kit._data.reading import read_image_folder, read_image_table
from finetune_kit._data.split import Split, StratifiedFolds, stratified_folds, stratified_split
from finetune_kit._features.cache import CachedFeatures, cached_features, clear_cached_features
from finetune_kit._model.blocks import Block, conv_blocks
from finetune_kit._model.head import classification_head, multilabel_head
from finetune_kit._model.plan import FreezePlan
from finetune_kit._model.preprocessing import preprocessing
from finetune_kit._model.schedules import gradual_unfreezing, linear_probe_then_fine_tune
from finetune_kit._model.spec import FineTuneSpec
from finetune_kit._model.surgery import cut, stitch
from finetune_kit._report.attribution import grad_cam, occlusion, overlay
from finetune_kit._report.compare import Comparison, Difference, compare
from finetune_kit._report.evaluate import evaluate
from finetune_kit._report.metrics import Figure
from finetune_kit._report.report import Example, Report
from finetune_kit._train.fine_tune import FineTuned, fine_tune
from finetune_kit._train.sweep import sweep

__version__ = "0.1.0"

__all__ = [  # in path order
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
    "multilabel_head",
    "preprocessing",
    "cut",
    "stitch",
    "FineTuned",
    "fine_tune",
    "sweep",
    "CachedFeatures",
    "cached_features",
    "clear_cached_features",
    "evaluate",
    "Report",
    "Figure",
    "Example",
    "compare",
    "Comparison",
    "Difference",
    "grad_cam",
    "occlusion",
    "overlay",
]
