//! Checks products of tensor cores, and the loads of their operands, lane by lane.

use super::*;

const SIXTEEN_BITS: [DType; 2] = [DType::BF16, DType::F16];

/// c [16, 8] + a [16, 16] b [16, 8], with a and b rounded to `dtype`.
fn multiply(dtype: DType, [a, b, c]: [&[f32]; 3]) -> Result<Vec<f32>> {
    let emulator = Emulator::of(&SELF_TEST)?;
    let tensor = |x: &[f32]| Tensor::from_slice(x, x.len(), &Device::Cpu);
    let (a, b) = (tensor(a)?.to_dtype(dtype)?, tensor(b)?.to_dtype(dtype)?);
    let inputs = [&a, &b, &tensor(c)?];
    let out = emulator.compute(&inputs, &[(DType::F32, 128)], |x, out| {
        let call = Call::new(&SELF_TEST, "multiply_16", launch(1, 32, 0))?;
        let call = call.floats(x[0]).floats(x[1]).buffer(x[2], DType::F32);
        Ok(vec![call.buffer(out[0], DType::F32)])
    })?;
    out[0].to_vec1()
}

/// The product by its definition, in f64.
fn plain([a, b, c]: [&[f32]; 3]) -> Vec<f64> {
    let element = |i: usize| {
        let terms = (0..16).map(|k| f64::from(a[i / 8 * 16 + k]) * f64::from(b[k * 8 + i % 8]));
        f64::from(c[i]) + terms.sum::<f64>()
    };
    (0..128).map(element).collect()
}

/// Multiples of 1/64 between -2 and 2: bf16 and f16 hold them.
fn numbers(len: usize, seed: usize) -> Vec<f32> {
    let number = |i: usize| ((i * 37 + seed * 101) % 255) as f32 / 64.0 - 2.0;
    (0..len).map(number).collect()
}

#[test]
fn the_identity_leaves_a_matrix_where_it_is() -> Result<()> {
    let identity = |columns: usize, from: usize| -> Vec<f32> {
        let one = |i: usize| f32::from(u8::from(i / columns == from + i % columns));
        (0..16 * columns).map(one).collect()
    };
    let (a, b, zero) = (numbers(256, 1), numbers(128, 2), [0.0; 128]);
    for dtype in SIXTEEN_BITS {
        // I b = b.
        assert_eq!(multiply(dtype, [&identity(16, 0), &b, &zero])?, b);
        // a I is the columns of a that I's ones are in the rows of.
        for from in [0, 8] {
            let made = multiply(dtype, [&a, &identity(8, from), &zero])?;
            let columns: Vec<f32> = (0..128).map(|i| a[i / 8 * 16 + from + i % 8]).collect();
            assert_eq!(made, columns);
        }
        // And what was there before is kept.
        let kept = multiply(dtype, [&[0.0; 256], &b, &a[..128]])?;
        assert_eq!(kept, a[..128]);
    }
    Ok(())
}

#[test]
fn products_are_exact_where_f32_holds_them() -> Result<()> {
    // Terms are multiples of 2^-12 of at most 4: sums of 17 of them need fewer than 24 bits, in any order.
    let (a, b, c) = (numbers(256, 3), numbers(128, 4), numbers(128, 5));
    for dtype in SIXTEEN_BITS {
        let made = multiply(dtype, [&a, &b, &c])?;
        let made: Vec<f64> = made.into_iter().map(f64::from).collect();
        assert_eq!(made, plain([&a, &b, &c]));
    }
    Ok(())
}

#[test]
fn numbers_of_every_size_take_part() -> Result<()> {
    let zero = [0.0f32; 128];
    // Subnormal numbers of f16, its largest and infinity, and NaN, in the first row against ones.
    for (dtype, x) in [
        (DType::F16, 2f32.powi(-24)),
        (DType::F16, 1023.0 * 2f32.powi(-24)),
        (DType::F16, -65504.0),
        (DType::BF16, 2f32.powi(120)),
        (DType::BF16, 2f32.powi(-120)),
        (DType::F16, f32::INFINITY),
        (DType::BF16, f32::NEG_INFINITY),
        (DType::F16, f32::NAN),
        (DType::BF16, f32::NAN),
    ] {
        let mut a = [0.0; 256];
        a[5] = x;
        let made = multiply(dtype, [&a, &[1.0; 128], &zero])?;
        assert!(
            made[..8]
                .iter()
                .all(|y| y.to_bits() == x.to_bits() || y.is_nan() && x.is_nan())
        );
        assert!(made[8..].iter().all(|y| *y == 0.0), "{dtype:?} {x}");
    }
    Ok(())
}

#[test]
fn a_lane_gets_its_elements_of_four_matrices() -> Result<()> {
    // Element e of matrix m in row r is 64 m + 8 r + e.
    let word = |i: u32| (2 * i) | ((2 * i + 1) << 16);
    let x: Vec<u32> = (0..128).map(word).collect();
    let x = Tensor::from_slice(&x, x.len(), &Device::Cpu)?;
    let emulator = Emulator::of(&SELF_TEST)?;
    let out = emulator.compute(&[&x], &[(DType::U32, 256)], |x, out| {
        let call = Call::new(&SELF_TEST, "four_matrices", launch(1, 32, 512))?;
        Ok(vec![
            call.buffer(x[0], DType::U32).buffer(out[0], DType::U32),
        ])
    })?;
    let out = out[0].to_vec1::<u32>()?;
    let both = |i: u32| [out[i as usize] & 0xffff, out[i as usize] >> 16];
    for (matrix, lane) in (0..4u32).flat_map(|m| (0..32).map(move |lane| (m, lane))) {
        let (group, pair, first) = (lane / 4, lane % 4 * 2, 64 * matrix);
        let as_it_lies = [8 * group + pair, 8 * group + pair + 1];
        assert_eq!(both(matrix * 32 + lane), as_it_lies.map(|e| first + e));
        let transposed = [8 * pair + group, 8 * (pair + 1) + group];
        assert_eq!(
            both((4 + matrix) * 32 + lane),
            transposed.map(|e| first + e)
        );
    }
    Ok(())
}

/// Kernels that do with tensor cores what kernels may not.
static MISUSES: Module = Module::new(
    "misuses",
    r#"
    extern "C" __global__ void without_a_lane(Buffer<float> out) {
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        u32 a[4] = {0, 0, 0, 0};
        if (lane() != 3) mma<BF16>(sum, a, 0, 0);
        out[threadIdx.x] = sum[0];
    }
    extern "C" __global__ void of_two_types(Buffer<float> out) {
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        u32 a[4] = {0, 0, 0, 0};
        if (lane() % 2) mma<BF16>(sum, a, 0, 0);
        else mma<F16>(sum, a, 0, 0);
        out[threadIdx.x] = sum[0];
    }
    extern "C" __global__ void of_rows_that_nobody_wrote(Buffer<float> out) {
        Shared<Eight> rows = shared<Eight>(0, WARP);
        if (lane() < 31) rows[lane()] = Eight{0, 0, 0, 0};
        __syncthreads();
        u32 part[4];
        load_matrices<false>(rows[lane()], part);
        out[threadIdx.x] = part[0];
    }
    extern "C" __global__ void no_barrier(Buffer<float> out) {
        Shared<Eight> rows = shared<Eight>(0, WARP);
        u32 a[4] = {0, 0, 0, 0};
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        rows[lane()] = Eight{0, 0, 0, 0};
        mma<F16>(sum, a, 0, 0);
        load_matrices<false>(rows[31 - lane()], a);
        out[threadIdx.x] = sum[0];
    }
    "#,
    &[
        "without_a_lane",
        "of_two_types",
        "of_rows_that_nobody_wrote",
        "no_barrier",
    ],
);

#[test]
fn a_product_without_a_lane_or_a_barrier_is_refused() -> Result<()> {
    let emulator = Emulator::of(&MISUSES)?;
    for (function, message) in [
        ("without_a_lane", "not all threads meet: 1 have ended"),
        ("of_two_types", "meet in different exchanges"),
        (
            "of_rows_that_nobody_wrote",
            "shared memory that nobody wrote",
        ),
        ("no_barrier", "race in shared memory"),
    ] {
        let mut memory = Memory::new();
        let out = memory.fresh(DType::F32, 32);
        let call = Call::new(&MISUSES, function, launch(1, 32, 512))?;
        let error = emulator.run(&mut memory, &[call.buffer(out, DType::F32)]);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(message), "{function}: {error}");
    }
    Ok(())
}
