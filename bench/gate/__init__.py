"""Guards against regressions: deterministic counters against baselines, times against another revision."""
