"""Import weights of other libraries, and export weights for them. The libraries are listed in `sources`."""
