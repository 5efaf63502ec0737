"""One transfer rule per operator."""
