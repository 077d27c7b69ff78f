"""Many trainings or evaluations that answer one question: systems compared, languages crossed, prompts compared."""
