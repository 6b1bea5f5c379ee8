"""What people read: the report page, tables, charts and cards."""
