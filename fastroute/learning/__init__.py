"""Calibrates the learned router on labels: fit, forecast, and whether to use it.

found = calibrate(read_labels("labels.jsonl"), weak="gpt-4.1-nano", strong="gpt-4.1", share=0.3)
print(found.accepted, found.reason, found.forecast.lift_low)
found.save("router.frl")
"""

from .asking import AskReport, ask
from .calibration import CalibrationResult, PairForecast, by_share, calibrate, forecast_pairs
from .forecast import Forecast
from .labels import Label, LabelError, LabelSet, read_labels

__all__ = [
    "AskReport",
    "CalibrationResult",
    "Forecast",
    "Label",
    "LabelError",
    "LabelSet",
    "PairForecast",
    "ask",
    "by_share",
    "calibrate",
    "forecast_pairs",
    "read_labels",
]
