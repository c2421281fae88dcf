// How an exception becomes an error text; csrc's every function gives null or such a text, which lm_free_error frees.
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
    return strdup("an exception of an unknown type");
  }
}
