/* The version that this stands in for. */
#pragma once
#define CUDA_VERSION 13000
