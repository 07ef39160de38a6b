"""Run the whole suite under pytest: every check of ``fampe_fast.testing`` on every requested backend.

``pytest -p my_backend -p fampe_fast.testing.plugin --pyargs fampe_fast.testing.suite --fampe-backend mine``, where
importing ``my_backend`` calls ``fampe_fast.register_backend("mine", {...})``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plugin import Trial


def test_primitive(fampe_trial: Trial) -> None:
    """Run one check on one case; the test's name says which."""
    fampe_trial.run()
