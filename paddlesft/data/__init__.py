"""Data: records -> conversations -> tokens and which of them are trained -> packed batches; and reports."""
