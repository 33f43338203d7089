"""Tables of sensors, sales or anything else with rows in time: anomalies, forecasts and gaps, table in and table out.

Needs the extra ``tables``: pandas, scikit-learn, whose habits the estimators have, and scoringrules.
"""

try:
    import pandas  # noqa: F401
    import scoringrules  # noqa: F401
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"vrnn_fast.tables needs {error.name}, which is not installed: pip install vrnn-fast[tables]"
    ) from error

from .detector import Detector
from .forecaster import Forecaster
from .imputer import Imputer
from .reader import TableError

__all__ = ["Detector", "Forecaster", "Imputer", "TableError"]
