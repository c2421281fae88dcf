// Converts exceptions to error texts. Every function in csrc returns null or such a text, which
// lm_free_error frees.
#pragma once

#include <c10/util/Exception.h>

#include <cstring>
#include <exception>

template <typename Body>
char* caught(Body body) {
  try {
    body();
    return nullptr;
  } catch (const c10::Error& error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("unknown exception");
  }
}
