"""The gated delta rule: one public function, several backends."""

from had.ops.gated_delta_rule import gated_delta_rule
from had.ops.reference import reference_gated_delta_rule

__all__ = ["gated_delta_rule", "reference_gated_delta_rule"]
