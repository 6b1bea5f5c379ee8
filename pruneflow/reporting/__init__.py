"""What people read: the report page, summary.json and the model card."""
