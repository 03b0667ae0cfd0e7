"""`simpo chat`: a model in the terminal, or two side by side."""
