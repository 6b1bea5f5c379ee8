"""One round of pruning: statistics, scores, allocation, surgery, refit."""
