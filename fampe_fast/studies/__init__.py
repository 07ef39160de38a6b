"""Studies: many variants of a method on the same images, resumable, with a table, a plot and JSON."""

from .definitions import STUDIES, Budget, define_study
from .design import Study, Variant
from .running import StudyResult, run_study

__all__ = ["STUDIES", "Budget", "Study", "StudyResult", "Variant", "define_study", "run_study"]
