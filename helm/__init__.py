"""Scripts that write generated parts of the chart; .helmignore leaves them out of it."""
