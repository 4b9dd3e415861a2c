mod tensor_cores;

use candle_core::{DType, Device, Result, Tensor};
use half::{bf16, f16};

use super::{Emulator, Memory};
use crate::{Call, Launch, Module, Part, SELF_TEST};

fn launch(blocks: usize, block: usize, shared: usize) -> Launch {
    Launch {
        grid: [blocks, 1, 1],
        block,
        shared,
    }
}

/// x in another type, by the kernel.
fn converted(emulator: &Emulator, x: &Tensor, dtype: DType) -> Result<Tensor> {
    let len = x.elem_count();
    let out = emulator.compute(&[x], &[(dtype, len)], |x, out| {
        let call = Call::new(&SELF_TEST, "convert", Launch::over(len, 256))?;
        Ok(vec![call.floats(x[0]).floats(out[0]).size(len)])
    })?;
    Ok(out[0].clone())
}

/// The bits of every f32 on the way between numbers that 16 bits hold, and the numbers themselves.
fn awkward() -> Vec<f32> {
    let bits = (0..=u16::MAX).flat_map(|high| {
        [0u32, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001]
            .map(|low| u32::from(high) << 16 | low)
    });
    let f16s = (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32().to_bits());
    let between = f16s.flat_map(|bits| [bits, bits ^ 0x1000, bits.wrapping_add(0x0fff)]);
    bits.chain(between).map(f32::from_bits).collect()
}

#[test]
fn sixteen_bit_floats_are_those_of_half() -> Result<()> {
    let emulator = Emulator::of(&SELF_TEST)?;
    let wide = awkward();
    let x = Tensor::from_slice(&wide, wide.len(), &Device::Cpu)?;
    let narrow = converted(&emulator, &x, DType::BF16)?.to_vec1::<bf16>()?;
    for (wide, narrow) in wide.iter().zip(narrow) {
        assert_eq!(
            narrow.to_bits(),
            bf16::from_f32(*wide).to_bits(),
            "{wide:e}"
        );
    }
    let narrow = converted(&emulator, &x, DType::F16)?.to_vec1::<f16>()?;
    for (wide, narrow) in wide.iter().zip(narrow) {
        assert_eq!(narrow.to_bits(), f16::from_f32(*wide).to_bits(), "{wide:e}");
    }
    let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    let x = Tensor::from_slice(&all, all.len(), &Device::Cpu)?;
    for (wide, narrow) in converted(&emulator, &x, DType::F32)?
        .to_vec1::<f32>()?
        .iter()
        .zip(all)
    {
        assert!(wide.to_bits() == narrow.to_f32().to_bits() || narrow.is_nan() && wide.is_nan());
    }
    let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    let x = Tensor::from_slice(&all, all.len(), &Device::Cpu)?;
    for (wide, narrow) in converted(&emulator, &x, DType::F32)?
        .to_vec1::<f32>()?
        .iter()
        .zip(all)
    {
        assert_eq!(wide.to_bits(), narrow.to_f32().to_bits(), "{narrow:e}");
    }
    Ok(())
}

#[test]
fn threads_meet_at_barriers_and_join_their_values() -> Result<()> {
    let emulator = Emulator::of(&SELF_TEST)?;
    let (rows, size) = (3usize, 1000usize);
    let x: Vec<f32> = (0..rows * size).map(|i| (i % 701) as f32).collect();
    for block in [32, 256, 1024] {
        let mut memory = Memory::new();
        let at = memory.upload(&Tensor::from_slice(&x, x.len(), &Device::Cpu)?)?;
        let out = memory.fresh(DType::F32, 2 * rows);
        let call = Call::new(&SELF_TEST, "block_totals", launch(rows, block, 128))?;
        emulator.run(&mut memory, &[call.floats(at).floats(out).size(size)])?;
        // Sums of whole numbers below 2^24, exact in any order.
        let expected: Vec<f32> = x
            .chunks(size)
            .flat_map(|row| [row.iter().sum(), row.iter().copied().fold(0.0, f32::max)])
            .collect();
        assert_eq!(
            memory.read(out)?.to_vec1::<f32>()?,
            expected,
            "{block} threads"
        );
    }
    let mut memory = Memory::new();
    let x: Vec<u32> = (0..128).collect();
    let at = memory.upload(&Tensor::from_slice(&x, x.len(), &Device::Cpu)?)?;
    let out = memory.fresh(DType::U32, x.len());
    let call = Call::new(&SELF_TEST, "reverse", launch(2, 64, 256))?;
    emulator.run(
        &mut memory,
        &[call.buffer(at, DType::U32).buffer(out, DType::U32)],
    )?;
    let turned: Vec<u32> = x.chunks(64).flat_map(|x| x.iter().rev().copied()).collect();
    assert_eq!(memory.read(out)?.to_vec1::<u32>()?, turned);
    Ok(())
}

#[test]
fn lanes_get_what_cuda_says_they_get() -> Result<()> {
    let emulator = Emulator::of(&SELF_TEST)?;
    let mut memory = Memory::new();
    let out = memory.fresh(DType::I64, 5 * 32);
    let call = Call::new(&SELF_TEST, "exchange", launch(1, 32, 0))?;
    emulator.run(&mut memory, &[call.buffer(out, DType::I64)])?;
    let out = memory.read(out)?.reshape((5, 32))?.to_vec2::<i64>()?;
    let every_third: i64 = (0..32).filter(|i| i % 3 == 0).map(|i| 1 << i).sum();
    for lane in 0..32i64 {
        let down = if lane + 4 < 32 { lane + 4 } else { lane };
        let up = if lane >= 4 { lane - 4 } else { lane };
        let column: Vec<i64> = out.iter().map(|row| row[lane as usize]).collect();
        assert_eq!(column, [5, lane ^ 3, down, up, every_third]);
    }
    Ok(())
}

/// Kernels that do what kernels may not.
static FAULTS: Module = Module::new(
    "faults",
    r#"
    extern "C" __global__ void race(Buffer<u32> out) {
        Shared<u32> tile = shared<u32>(0, blockDim.x);
        tile[threadIdx.x] = threadIdx.x;
        out[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
    }
    extern "C" __global__ void blocks_race(Buffer<u32> out) { out[0] = blockIdx.x; }
    extern "C" __global__ void outside(Buffer<u32> out) { out[threadIdx.x + 1] = 0; }
    extern "C" __global__ void outside_shared(Buffer<u32> out) { out[0] = shared<u32>(0, 33)[0]; }
    extern "C" __global__ void parted(Buffer<u32> out) {
        if (threadIdx.x < 7) __syncthreads();
        out[threadIdx.x] = 0;
    }
    extern "C" __global__ void some_lanes(Buffer<u32> out) { out[threadIdx.x] = __shfl_sync(0xff, 1u, 0); }
    extern "C" __global__ void unwritten(Floats out) { out.store(0, shared<float>(0, 1)[0]); }
    extern "C" __global__ void silent_race(Buffer<u32> out) {
        Shared<u32> tile = shared<u32>(0, blockDim.x);
        tile[threadIdx.x] = 7;
        __syncthreads();
        tile[0] = 7;
        out[threadIdx.x] = 7;
    }
    extern "C" __global__ void misaligned(Buffer<u32> out) { *(Four*)(out.data + 1) = *(Four*)(out.data + 5); }
    extern "C" __global__ void past_the_check(Buffer<u32> out) { out.data[out.len] = 1; }
    extern "C" __global__ void past_the_table(Table<Buffer<u32>> out) { out[out.len][0] = 1; }
    extern "C" __global__ void past_its_buffer(Table<Buffer<u32>> out) {
        Buffer<u32> own = out[blockIdx.x];
        own[own.len] = 1;
    }
    extern "C" __global__ void past_its_check(Table<Buffer<u32>> out) {
        Buffer<u32> own = out[blockIdx.x];
        own.data[own.len] = 1;
    }
    extern "C" __global__ void untouched(Floats out) { if (threadIdx.x == 0) out.store(0, 1.0f); }
    "#,
    &[
        "race",
        "blocks_race",
        "outside",
        "outside_shared",
        "parted",
        "some_lanes",
        "unwritten",
        "silent_race",
        "misaligned",
        "past_the_check",
        "past_the_table",
        "past_its_buffer",
        "past_its_check",
        "untouched",
    ],
);

#[test]
fn mistakes_are_named() -> Result<()> {
    let emulator = Emulator::of(&FAULTS)?;
    let mut memory = Memory::new();
    let out = memory.fresh(DType::U32, 64);
    let call = |function, blocks| Call::new(&FAULTS, function, launch(blocks, 64, 256));
    for (function, blocks, message) in [
        ("race", 1, "shared memory"),
        // Every thread writes the same: no order of threads shows it.
        ("silent_race", 1, "race in shared memory at byte 0"),
        ("misaligned", 1, "misaligned access: 16 bytes"),
        ("past_the_check", 1, "outside of every buffer"),
        ("blocks_race", 2, "a barrier is missing"),
        ("outside", 1, "thread 63: element 64 of 64"),
        (
            "parted",
            1,
            "not all threads meet: 57 have ended, 7 are at a barrier",
        ),
        ("some_lanes", 1, "lanes ff only"),
    ] {
        let call = call(function, blocks)?.buffer(out, DType::U32);
        let error = emulator.run(&mut memory, &[call]).unwrap_err().to_string();
        assert!(error.contains(message), "{function}: {error}");
    }
    let small = Call::new(&FAULTS, "outside_shared", launch(1, 32, 128))?;
    let error = emulator.run(&mut memory, &[small.buffer(out, DType::U32)]);
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("to byte 132, the launch has 128")
    );
    let out = memory.fresh(DType::F32, 2);
    let error = emulator.run(&mut memory, &[call("unwritten", 1)?.floats(out)]);
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("shared memory that nobody wrote")
    );
    // What nobody wrote is NaN.
    emulator.run(&mut memory, &[call("untouched", 1)?.floats(out)])?;
    let values = memory.read(out)?.to_vec1::<f32>()?;
    assert!(values[0] == 1.0 && values[1].is_nan());
    Ok(())
}

#[test]
fn mistakes_with_tables_are_named() -> Result<()> {
    let emulator = Emulator::of(&FAULTS)?;
    let mut memory = Memory::new();
    let buffers = [memory.fresh(DType::U32, 64), memory.fresh(DType::U32, 8)];
    for (function, message) in [
        ("past_the_table", "element 2 of 2"),
        ("past_its_buffer", "element 64 of 64"),
        ("past_its_check", "outside of every buffer"),
    ] {
        let call = Call::new(&FAULTS, function, launch(1, 32, 0))?;
        let call = call.table(buffers.map(Part::whole).to_vec(), DType::U32);
        let error = emulator.run(&mut memory, &[call]).unwrap_err().to_string();
        assert!(error.contains(message), "{function}: {error}");
    }
    let call = |call: &dyn Fn(Call) -> Call| {
        let new = Call::new(&FAULTS, "past_its_buffer", launch(0, 32, 0));
        let some = Call::new(&FAULTS, "past_its_buffer", launch(1, 32, 0));
        let (none, some) = (call(new?), call(some?));
        // What is not launched is not looked at.
        emulator.run(&mut memory.clone(), &[none])?;
        let refusal = emulator.run(&mut memory.clone(), &[some]).unwrap_err();
        Ok::<_, candle_core::Error>(refusal.to_string())
    };
    let part = |part| call(&|call: Call| call.table(vec![part], DType::U32));
    assert!(part(Part::of(buffers[1], 4, 5))?.contains("which has 8"));
    assert!(part(Part::of(buffers[1], 1, usize::MAX))?.contains("which has 8"));
    assert!(part(Part::whole(7))?.contains("none 7"));
    let whole = || buffers.map(Part::whole).to_vec();
    let floats = call(&|call: Call| call.table(whole(), DType::F32))?;
    assert!(floats.contains("holds U32"), "{floats}");
    let floats = call(&|call: Call| call.floats_table(whole()))?;
    assert!(floats.contains("was given U32"), "{floats}");
    let float = memory.fresh(DType::F32, 8);
    for wrong in [
        &(|call: Call| call.table(vec![Part::whole(float)], DType::F32)) as &dyn Fn(Call) -> Call,
        &|call| call.floats_table(vec![Part::whole(float)]),
        &|call| call.buffer(buffers[0], DType::U32),
    ] {
        let call = wrong(Call::new(&FAULTS, "past_its_buffer", launch(1, 32, 0))?);
        let error = emulator.run(&mut memory, &[call]).unwrap_err().to_string();
        assert!(error.contains("parameters' types"), "{error}");
    }
    Ok(())
}

#[test]
fn a_change_is_seen_in_place_and_a_written_input_is_refused() -> Result<()> {
    let emulator = Emulator::of(&SELF_TEST)?;
    let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu);
    let (whole, x) = (
        tensor(&[0.0; 6])?.reshape((2, 3))?,
        tensor(&[1.0, 2.0, 3.0])?,
    );
    let row = whole.narrow(0, 1, 1)?;
    let convert = |from: usize, to: usize| {
        let call = Call::new(&SELF_TEST, "convert", Launch::over(3, 32))?;
        Ok(vec![call.floats(from).floats(to).size(3)])
    };
    emulator.change(&[&row], &[&x], |out, x| convert(x[0], out[0]))?;
    let expected = [[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]];
    assert_eq!(whole.to_vec2::<f32>()?, expected);
    let mut memory = Memory::new();
    let (read, written) = (memory.upload(&x)?, memory.fresh(DType::F32, 3));
    emulator.run_reading(&mut memory, &[read], &convert(read, written)?)?;
    let zeros = memory.upload(&x.zeros_like()?)?;
    let error = emulator.run_reading(&mut memory, &[read], &convert(zeros, read)?);
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("convert") && error.contains("is an input"),
        "{error}"
    );
    Ok(())
}

#[test]
fn arguments_of_other_types_are_refused() -> Result<()> {
    let emulator = Emulator::of(&SELF_TEST)?;
    let mut memory = Memory::new();
    let (x, whole) = (memory.fresh(DType::F32, 4), memory.fresh(DType::U32, 4));
    let call = || Call::new(&SELF_TEST, "convert", launch(1, 32, 0));
    for call in [
        call()?.floats(x).floats(x),
        call()?.floats(x).floats(x).int(4),
        call()?.floats(x).buffer(x, DType::F32).size(4),
        call()?.floats(x).floats(whole).size(4),
        call()?.floats(x).buffer(whole, DType::F32).size(4),
        call()?.floats(x).floats(2).size(4),
    ] {
        assert!(emulator.run(&mut memory, &[call]).is_err());
    }
    emulator.run(&mut memory, &[call()?.floats(x).floats(x).size(4)])
}
