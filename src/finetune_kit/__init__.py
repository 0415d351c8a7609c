"""Fine-tune the trailing blocks of any Keras backbone, and know what trained.

The path, in the order of the names below:

    folder -> read_image_folder -> ImageSet -> stratified_split -> Split
    backbone -> conv_blocks -> FineTuneSpec.plan -> FreezePlan
    classification_head, preprocessing -> fine_tune, sweep -> FineTuned -> evaluate -> Report

What comes in and what goes out are plain Keras models; what is saved loads with Keras alone.
"""

from finetune_kit._attribution import grad_cam, occlusion, overlay
from finetune_kit._blocks import Block, conv_blocks
from finetune_kit._cached import CachedFeatures, cached_features, clear_cached_features
from finetune_kit._compare import Comparison, Difference, compare
from finetune_kit._evaluate import evaluate
from finetune_kit._head import classification_head, multilabel_head
from finetune_kit._images import ImageSet
from finetune_kit._leakage import Duplicates, find_duplicates
from finetune_kit._manifest import read_manifest, write_manifest
from finetune_kit._metrics import Figure
from finetune_kit._plan import FreezePlan
from finetune_kit._preprocessing import preprocessing
from finetune_kit._reading import read_image_folder, read_image_table
from finetune_kit._report import Example, Report
from finetune_kit._schedules import gradual_unfreezing, linear_probe_then_fine_tune
from finetune_kit._spec import FineTuneSpec
from finetune_kit._split import Split, StratifiedFolds, stratified_folds, stratified_split
from finetune_kit._surgery import cut, stitch
from finetune_kit._sweep import sweep
from finetune_kit._train import FineTuned, fine_tune

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
