"""From a published model to its versions on fewer bits: int8 and float16. Knows nothing of torch."""
