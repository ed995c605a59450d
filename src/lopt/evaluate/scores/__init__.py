"""From runs to scores: selection, speed-ups, intervals."""
