"""What a run needs before it is started: memory of each GPU, time and money, from the model's config alone."""
