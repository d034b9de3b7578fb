"""Makes graphs of lower precision: fp16 and int8."""
