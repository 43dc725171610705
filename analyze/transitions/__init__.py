"""Whether outliers set in suddenly along a ladder of models: fits, verdicts, tables and figures."""
