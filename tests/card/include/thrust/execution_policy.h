/* Included by kernels that are not part of this stand-in: see card_refusal.h. */
#pragma once
