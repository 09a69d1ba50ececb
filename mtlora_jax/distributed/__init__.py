"""Several devices and processes: shardings, start and end of processes, preemption, agreement on inputs."""
