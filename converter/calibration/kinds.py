"""Every kind of statistic that can be requested."""

from __future__ import annotations

from collections.abc import Mapping

from converter.calibration.average import Average
from converter.calibration.channels import AbsMax, Moments
from converter.calibration.gram import Gram
from converter.calibration.histogram import Histogram
from converter.calibration.minmax import MinMax
from converter.calibration.statistic import Statistic

STATISTICS: Mapping[str, type[Statistic]] = {
    "minmax": MinMax,
    "average": Average,
    "moments": Moments,
    "absmax": AbsMax,
    "histogram": Histogram,
    "gram": Gram,
}
