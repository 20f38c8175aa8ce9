"""Label maps of people's own pictures: what they name is found, read, predicted and written."""
