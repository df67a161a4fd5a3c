kernels: ## compile all Triton kernels ahead of time, no GPU needed
	python -m kernels.compile
.PHONY: kernels
