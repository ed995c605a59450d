"""Problems of training a network."""
