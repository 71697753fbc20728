"""fishladder in Airflow: DAGs made of migration files, the operators and sensors in them, and their connections."""
