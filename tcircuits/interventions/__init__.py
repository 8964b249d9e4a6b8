"""Interventions: edits of features and sites, and what they change."""

from tcircuits.interventions.features import Clean, FeatureEdit, Run, clean_run, edited_run, feature_edit
from tcircuits.interventions.intervene import Intervention, intervene, steer

__all__ = [
    "Clean",
    "FeatureEdit",
    "Intervention",
    "Run",
    "clean_run",
    "edited_run",
    "feature_edit",
    "intervene",
    "steer",
]
