"""A kind of labels as somebody would add it: any number of dots an image, each with a place."""
